//! Changes single fields of an object file, to make files that no compiler makes.

/// An object file under change.
pub struct Elf(pub Vec<u8>);

pub const SHDR: usize = 64;
/// Offsets of the members of a section header.
pub mod sh {
    pub const NAME: usize = 0;
    pub const TYPE: usize = 4;
    pub const FLAGS: usize = 8;
    pub const OFFSET: usize = 24;
    pub const SIZE: usize = 32;
    pub const LINK: usize = 40;
    pub const INFO: usize = 44;
    pub const ALIGN: usize = 48;
    pub const ENTSIZE: usize = 56;
}

impl Elf {
    pub fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
    }
    pub fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
    }
    pub fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.0[at..at + 2].try_into().unwrap())
    }
    pub fn set(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }
    pub fn section_count(&self) -> usize {
        self.u16(60).into()
    }
    /// The header of a section, by its index.
    pub fn header(&self, index: usize) -> usize {
        self.u64(40) as usize + index * SHDR
    }
    pub fn section_name(&self, index: usize) -> String {
        let names = self.u64(self.header(self.u16(62).into()) + sh::OFFSET) as usize;
        let at = names + self.u32(self.header(index) + sh::NAME) as usize;
        self.0[at..].iter().take_while(|b| **b != 0).map(|b| char::from(*b)).collect()
    }
    /// The index of the first section of that name.
    pub fn index(&self, name: &str) -> usize {
        (0..self.section_count())
            .find(|i| self.section_name(*i) == name)
            .unwrap_or_else(|| panic!("no section {name}"))
    }
    /// Sets a member of the header of the section of that name.
    pub fn section(self, name: &str, member: usize, value: &[u8]) -> Self {
        let at = self.header(self.index(name)) + member;
        self.set(at, value)
    }
    /// Where the content of a section begins in the file.
    pub fn content(&self, name: &str) -> usize {
        self.u64(self.header(self.index(name)) + sh::OFFSET) as usize
    }
    /// Where the entry of a symbol is in the file.
    pub fn symbol(&self, name: &str) -> usize {
        let (table, strings) = (self.content(".symtab"), self.content(".strtab"));
        let size = self.u64(self.header(self.index(".symtab")) + sh::SIZE) as usize;
        (table..table + size)
            .step_by(24)
            .find(|at| {
                let start = strings + self.u32(*at) as usize;
                self.0[start..].starts_with(name.as_bytes()) && self.0[start + name.len()] == 0
            })
            .unwrap_or_else(|| panic!("no symbol {name}"))
    }
    /// Where entry `n` of a relocation section is in the file.
    pub fn rela(&self, section: &str, n: usize) -> usize {
        self.content(section) + 24 * n
    }
}
