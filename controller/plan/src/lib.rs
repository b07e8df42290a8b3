//! Pure planning: inventory and policy in, plan out.
