"""The Hydra plugin `modal_jobs`: each job of a sweep runs on Modal or on this machine."""
