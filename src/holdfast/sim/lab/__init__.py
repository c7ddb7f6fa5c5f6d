"""The lab: situations in which storage fails its users, played on the simulated kernel of today and on holdfast.

    catalog    which there are; light, for command lines
    plays      those that can be played, by name
    scenario   what a play is, and its result
    actor      people as scripts: one request after the other, waits in between
    journal    what everybody asked for, was told, waited for; what was lost is found by comparing, at the end
    stack      what both sides have in common
    ours       holdfast: the engine in the simulated world
    theirs     today's kernel, put together from
    today        the page cache, over the same simulated disk
    memory       a memory cgroup with its OOM killer, and a loop device over tmpfs
    must_succeed allocations that must not fail, under a lock
    picture    a play as an SVG

The same scripts, with the same seed, are played to both sides. Neither side's figures are written down anywhere.
"""
