"""The coordinator: trains the rest of the network.

``server.py`` is one loop; beside it stand its parts, by when they are at work: ``gathering`` before the first round,
``hearing`` what devices say, ``round_course``, ``attendance``, ``flow`` and ``commits`` in every round. The rooms, each of which
imports only those below it:

    watching    for whoever watches: history, logs, status, the local socket
    beside      services that ride beside training: offloaded samples, bundles
    fleet       devices: the roll, plans, what comes in, what goes out
    rounds      the loop, written once
    model       the server's half of the network
    strategy    pure decisions: what to train on next, what becomes of copies
    store       a run on disk: folder, ledger, checkpoints
"""
