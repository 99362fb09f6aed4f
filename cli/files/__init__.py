"""Commands about files: sync plan, transfers, S3."""
