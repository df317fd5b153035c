"""Models at work: resumable batch jobs."""
