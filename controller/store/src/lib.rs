//! All of the controller's SQL.
