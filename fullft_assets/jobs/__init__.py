"""The job file that one entry point and every launcher understand."""

from fullft_assets.jobs.job import Job, is_running, launch_record, read_job, read_jobs
