"""What runs beside a job and in its process, in a container or on this machine."""
