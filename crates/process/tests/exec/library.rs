//! For tests on code from real compilers: a shared library that is built, loaded into this process, and looked at as a target's.
#![allow(unsafe_code, dead_code)]

use object::{Object, ObjectSegment, ObjectSymbol, SegmentFlags, SymbolKind};
use std::ffi::{CString, c_void};
use std::fs::File;
use std::path::Path;
use std::process::Command;
use ugraft_process::code::function::Text;
use ugraft_process::target::memory::Memory;
use ugraft_process::{Pid, RemoteAddr};

/// A function symbol, at its address in this process.
#[derive(Clone, Debug)]
pub struct Symbol {
    pub name: String,
    pub start: RemoteAddr,
    pub size: u64,
}

/// A loaded shared library; unloaded on drop.
pub struct Library {
    handle: *mut c_void,
    file: Vec<u8>,
    bias: u64,
    pub memory: Memory,
    _dir: tempfile::TempDir,
}

/// Runs a compiler; panics with its messages where it fails.
pub fn compile(compiler: &str, args: &[&str]) {
    let out = Command::new(compiler).args(args).output().unwrap_or_else(|e| panic!("{compiler}: {e}"));
    assert!(out.status.success(), "{compiler} {args:?}\n{}", String::from_utf8_lossy(&out.stderr));
}

impl Library {
    /// Builds `sources`, which are paths, into a shared library and loads it. It must export `anchor`.
    pub fn build(compiler: &str, args: &[&str], sources: &[&Path], anchor: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("code.so");
        let mut all = vec!["-shared", "-fPIC", "-w", "-o", path.to_str().unwrap()];
        all.extend(args);
        all.extend(sources.iter().map(|s| s.to_str().unwrap()));
        compile(compiler, &all);
        let name = CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: A library of ours without constructors.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null());
        let mut library = Self {
            handle,
            file: std::fs::read(&path).unwrap(),
            bias: 0,
            memory: Memory::new(
                Pid(std::process::id() as i32),
                File::options().read(true).write(true).open("/proc/self/mem").unwrap(),
            ),
            _dir: dir,
        };
        let link = library.functions().into_iter().find(|f| f.name == anchor).unwrap().start;
        library.bias = library.symbol(anchor) as u64 - link.0;
        library
    }

    pub fn symbol(&self, name: &str) -> *mut c_void {
        let name = CString::new(name).unwrap();
        // SAFETY: An open handle and a C string.
        let addr = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        assert!(!addr.is_null(), "{name:?}");
        addr
    }

    /// All functions of the symbol table.
    pub fn functions(&self) -> Vec<Symbol> {
        let elf = object::File::parse(&*self.file).unwrap();
        elf.symbols()
            .filter(|s| s.kind() == SymbolKind::Text && s.is_definition())
            .map(|s| Symbol {
                name: s.name().unwrap().to_owned(),
                start: RemoteAddr(s.address() + self.bias),
                size: s.size(),
            })
            .collect()
    }

    fn segments(&self, exec: bool) -> Vec<Text<'_>> {
        let elf = object::File::parse(&*self.file).unwrap();
        elf.segments()
            .filter(|s| {
                let SegmentFlags::Elf { p_flags } = s.flags() else { return false };
                (p_flags & object::elf::PF_X != 0) == exec && p_flags & object::elf::PF_W == 0
            })
            .map(|s| {
                let (offset, len) = s.file_range();
                Text {
                    addr: RemoteAddr(s.address() + self.bias),
                    bytes: &self.file[offset as usize..(offset + len) as usize],
                }
            })
            .collect()
    }

    /// The executable bytes as the file has them.
    pub fn text(&self) -> Text<'_> {
        self.segments(true)[0]
    }

    /// The read-only bytes as the file has them.
    pub fn data(&self) -> Vec<Text<'_>> {
        self.segments(false)
    }

    /// Bytes in memory.
    pub fn read(&self, addr: RemoteAddr, len: usize) -> Vec<u8> {
        self.memory.read_vec(addr, len).unwrap()
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: Nothing of it is referred to any more.
        unsafe { libc::dlclose(self.handle) };
    }
}
