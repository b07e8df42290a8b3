//! Mail of an account during a move: reception, delivery and passing on.
