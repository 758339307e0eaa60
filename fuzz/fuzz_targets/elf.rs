//! Any bytes as a patch file. What is accepted is also linked.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ugraft_fuzz::{Fake, Input, link_and_check};
use ugraft_image::PatchFile;

fuzz_target!(|bytes: &[u8]| {
    match PatchFile::parse(bytes, "fuzz") {
        Ok(patch) => link_and_check(&patch, 0x1000_0000, &mut Fake(Input(bytes))),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
