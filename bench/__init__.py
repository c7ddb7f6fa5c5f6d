"""The side-by-side benchmark: holdfast against the C servers, in the same run, on the same machine.

`python -m bench` runs it; docs and targets speak of its rows by name (`workloads.py`).  Nothing here imports the
engine: holdfast is started as a user starts it, as a process with a socket, and so are its peers.  The exception is
`micro.py`, which times single functions of the hot path.

    __main__.py     the command line
    settings.py     what a run is told: durations, sizes, where things lie
    workloads.py    the rows of the table and what each must reach
    servers.py      how each server is made, started and stopped
    fio.py          one fio run, parsed
    measure.py      CPU seconds and memory of a process
    machine.py      what this machine is, and how noisy its disk is today
    table.py        rounds x rows x servers
    verdict.py      medians, ratios, met or missed
    report.py       JSON and Markdown
    plots.py        PNG
    profiling.py    where the server's time goes in one row
    micro.py        the hot path, function by function
    experiments/    recovery, volumes, connections, map, memory: one question each
"""
