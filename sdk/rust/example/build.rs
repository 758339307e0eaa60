//! A patch is a relocatable object, as a kernel module is one: the linker joins what belongs to it, and leaves open what the
//! target has.

fn main() {
    for argument in ["-r", "-no-pie", "-nostdlib", "-Wl,--no-gc-sections"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
