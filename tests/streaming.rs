//! Bodies on the move: both directions at once, back-pressure, flat memory, and framing that nobody can confuse.

mod bodies;
mod duplex;
mod grpc;
mod smuggling;
