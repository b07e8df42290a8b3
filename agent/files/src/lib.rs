//! Ferry's file engine: scan, diff, send, apply, verify.
