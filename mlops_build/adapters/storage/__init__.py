"""Places with files: a folder, a prefix of an S3 bucket, or a prefix of a Swift container."""
