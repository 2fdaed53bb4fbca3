"""More films than a machine or its memory holds. Each file needs a package of its own: import what you need by name.

- ``shards``: prepared sets as tar files, streamed while training (webdataset)
- ``s3``: films and results in S3, archives unpacked there (boto3); ``s3_client`` and ``s3_zip`` are its parts
- ``cluster``: films by the million on a Ray cluster; ``cluster_work`` is what its processes do
"""
