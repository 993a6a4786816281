"""The command line of the run half: options, the job, progress, the service manager. Nothing below may call it."""
