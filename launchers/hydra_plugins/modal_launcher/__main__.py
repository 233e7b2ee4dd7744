"""The former name of `python -m hydra_modal_jobs`."""

from hydra_modal_jobs.__main__ import main

if __name__ == "__main__":
    main()
