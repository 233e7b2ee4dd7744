"""The files that the launcher keeps in a run's folder; each name is written here once."""

from __future__ import annotations

# In the folder of a run (`hydra.sweep.dir`).
LAUNCH_FILE = "launch.json"  # what was launched, where each job is queued
FORMER_LAUNCH_FILE = "manifest.json"  # its name in runs made before format version 1
CLAIM_FILE = ".launch.lock"  # locked by the one command that may write the run
MULTIRUN_FILE = "multirun.yaml"  # the configuration of the sweep, as Hydra's own sweeper writes it

# In the folder of a job (`hydra.sweep.subdir`).
LOG_FILE = "log.txt"  # what the job printed
ERROR_FILE = "error.txt"  # the whole traceback of a failure
CONTROL_FOLDER = ".job"  # the launcher's own files
JOB_FILE = f"{CONTROL_FOLDER}/job.json"  # all that is needed to run the job again
ATTEMPTS_FILE = f"{CONTROL_FOLDER}/attempts.jsonl"  # a line when an attempt begins or ends
ALIVE_FILE = f"{CONTROL_FOLDER}/alive"  # the time when the job was last seen running
RESULT_FILE = f"{CONTROL_FOLDER}/result.json"  # how the job ended

FORMAT_VERSION = 1  # of launch.json, job.json, result.json and attempts.jsonl
