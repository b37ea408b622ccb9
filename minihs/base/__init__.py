"""What every other room of the house may use: clock, chance, configuration, errors, tasks."""
