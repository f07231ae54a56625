"""The RunPod serverless worker: fetch, edit frames, encode, upload, commit."""
