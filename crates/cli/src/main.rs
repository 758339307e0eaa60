//! The `ugraft` program.
fn main() {}
