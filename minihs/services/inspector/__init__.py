"""The inspector: what this server decides about a room, and why. It only reads, in bounded steps.

What each function returns is a value that is shown as it is, as a page or as JSON.
"""
