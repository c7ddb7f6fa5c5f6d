"""The seeded world: the engine that serves disks, unchanged, under simulated time, power, disks and clients."""
