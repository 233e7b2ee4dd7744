"""The former name of the command `python -m hydra_modal_jobs`."""

if __name__ == "__main__":  # Hydra imports this module when it looks for plugins
    from hydra_modal_jobs.__main__ import main

    main()
