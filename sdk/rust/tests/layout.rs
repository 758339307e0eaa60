//! The structures are those of the C headers: a C compiler says where everything lies there.

use std::path::Path;
use std::process::Command;
use ugraft_patch::internal::LAYOUT;

#[test]
fn everything_lies_where_the_headers_have_it() {
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("layout");
    let mut compiler = Command::new("cc");
    compiler.arg("-I").arg(sdk.join("../include")).arg("-o").arg(&program).arg(sdk.join("tests/layout.c"));
    assert!(compiler.status().unwrap().success());
    let said = Command::new(&program).output().unwrap().stdout;
    let rust: Vec<String> = LAYOUT.iter().map(|(name, value)| format!("{name} {value}")).collect();
    assert_eq!(String::from_utf8(said).unwrap().lines().collect::<Vec<_>>(), rust);
}
