"""How many pixels come out of a crop: plain resampling now, Real-ESRGAN behind the same seam."""
