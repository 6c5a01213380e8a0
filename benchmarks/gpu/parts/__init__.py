"""The parts of the measurements: each plans its cases, `cases(setting)`."""
