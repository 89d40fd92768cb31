"""Whether an object can be uploaded to S3, without one being made."""

SECONDS = 15


def refuses_upload(bucket: str, key: str, endpoint: str | None) -> str | None:
    """Start a multipart upload, and cancel it: why that is refused; None if it is not. endpoint: of a gateway; None: Amazon's."""
    from boto3.session import Session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    quick = Config(
        connect_timeout=SECONDS,
        read_timeout=SECONDS,
        retries={"max_attempts": 1},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        client = Session().client("s3", endpoint_url=endpoint, config=quick)
        upload = client.create_multipart_upload(Bucket=bucket, Key=key)
        client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload["UploadId"])
    except ClientError as error:
        return str(error.response.get("Error", {}).get("Code", "an error"))
    except BotoCoreError as error:
        return str(error)[:200]
    return None
