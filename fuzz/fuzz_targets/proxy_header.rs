#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ferry_fuzz_targets::run("proxy_header", bytes));
