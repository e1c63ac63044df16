"""The page people keep open, its JSON, events and metrics.

`timeline` remembers what the sequencer saw, `sections` turns a coordinator into JSON values, `publisher` hands them to
a web server in a process of its own (`__main__`, `app`), where the `board` keeps them for any number of watchers.
"""
