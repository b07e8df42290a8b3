//! The durable step runner; knows no domain.
