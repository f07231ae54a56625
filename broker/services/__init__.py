"""What surrounds jobs: uploads, webhooks, access."""
