//! Shared by the tests: compilers, and a place in this process's own memory to link patches for.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::HashMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;
use ugraft_image::{Import, KlpSymbol, LinkedImage, Part, PatchFile, RemoteAddr, Resolution, Resolve};

/// The directory with `ugraft/livepatch.h`.
pub fn sdk() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sdk/include")
}

/// Runs a program, with its output in the panic if it fails.
pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Writes `source` to `dir/name.ext` and compiles it to `dir/name.o`.
pub fn compile(dir: &Path, cc: &str, name: &str, ext: &str, source: &str, options: &[&str]) -> PathBuf {
    let from = dir.join(format!("{name}.{ext}"));
    let to = dir.join(format!("{name}.o"));
    std::fs::write(&from, source).unwrap();
    run(Command::new(cc).args(options).arg("-I").arg(sdk()).arg("-c").arg(&from).arg("-o").arg(&to));
    to
}

/// The bytes of `source` compiled as C.
pub fn object(cc: &str, source: &str, options: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::read(compile(dir.path(), cc, "fix", "c", source, options)).unwrap()
}

/// A mapping in this process, unmapped on drop.
pub struct Map {
    pub addr: RemoteAddr,
    pub size: usize,
}

impl Map {
    /// Anywhere, or below 2 GiB.
    pub fn new(size: usize, low: bool) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | if low { libc::MAP_32BIT } else { 0 };
        // SAFETY: an anonymous mapping at a place that the kernel chooses.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        assert_ne!(at, libc::MAP_FAILED, "mmap");
        Self { addr: RemoteAddr(at as u64), size }
    }

    /// Copies `bytes` to `offset`.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.size);
        // SAFETY: within the mapping, which only this test uses, and writable until `protect`.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                (self.addr.0 as usize + offset) as *mut u8,
                bytes.len(),
            );
        }
    }

    /// Sets the protection of `size` bytes at `offset`.
    pub fn protect(&self, offset: usize, size: usize, protection: i32) {
        // SAFETY: within the mapping.
        let r = unsafe { libc::mprotect((self.addr.0 as usize + offset) as *mut _, size, protection) };
        assert_eq!(r, 0, "mprotect");
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: our own mapping; the tests that call into it have returned.
        unsafe { libc::munmap(self.addr.0 as *mut _, self.size) };
    }
}

/// Puts a linked image into its mapping, protected as it says.
pub fn install(image: &LinkedImage, map: &Map) {
    assert_eq!(image.base, map.addr);
    for s in &image.segments {
        let offset = s.addr.distance_from(map.addr) as usize;
        map.write(offset, &s.bytes);
        let protection = match s.part {
            Part::Text => libc::PROT_READ | libc::PROT_EXEC,
            Part::ReadOnly => libc::PROT_READ,
            Part::Data => libc::PROT_READ | libc::PROT_WRITE,
        };
        map.protect(offset, s.mem_size.next_multiple_of(4096) as usize, protection);
    }
}

/// Resolves in this process: what the test says, else by dlsym.
#[derive(Default)]
pub struct Here {
    pub symbols: HashMap<String, Resolution>,
    pub klp: HashMap<(Option<String>, String, u32), Resolution>,
}

impl Resolve for Here {
    fn symbol(&mut self, import: &Import) -> Resolution {
        if let Some(found) = self.symbols.get(&import.name) {
            return found.clone();
        }
        let name = CString::new(import.name.clone()).unwrap();
        // SAFETY: a string that ends in zero.
        let at = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        if at.is_null() { Resolution::NotFound } else { Resolution::Address(RemoteAddr(at as u64)) }
    }

    fn klp_symbol(&mut self, klp: &KlpSymbol, _: &Import) -> Resolution {
        let key = (klp.object.clone(), klp.symbol.clone(), klp.pos);
        self.klp.get(&key).cloned().unwrap_or(Resolution::NotFound)
    }
}

/// Links `patch` into new memory and installs it.
pub fn link_here(patch: &PatchFile, low: bool, resolve: &mut Here) -> (LinkedImage, Map) {
    let map = Map::new(patch.layout().size as usize, low);
    let image = ugraft_image::link(patch, map.addr, resolve).unwrap_or_else(|e| panic!("{e}"));
    install(&image, &map);
    (image, map)
}
