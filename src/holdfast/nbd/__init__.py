"""The wire: the NBD protocol without sockets, clocks or anything of the engine.

In the order in which a connection meets them: `handshake` comes to terms with a client (`negotiated`, `options`),
`transmission` turns its bytes into requests, `replies` turns answers into bytes.  `client` is the other end.
`protocol` has the numbers.
"""
