//! Every way in which a patch file can be wrong or cannot be linked, with the sentence that tells it: the thing, the
//! reason, the way out.

use crate::RemoteAddr;
use crate::limits;

/// Why a patch file is refused or cannot be linked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // The file as a whole.
    /// Not an ELF file; `what` says what it seems to be.
    #[error("not an ELF object but {what}: {way}")]
    NotElf {
        /// What the first bytes look like.
        what: &'static str,
        /// What to do.
        way: &'static str,
    },
    /// The file is larger than a patch may be.
    #[error(
        "the file has {size} bytes, a patch may have {}: leave out what the patch does not need (strip -d)",
        limits::MAX_FILE_SIZE
    )]
    FileTooLarge {
        /// Its size in bytes.
        size: usize,
    },
    /// A 32-bit or x32 object.
    #[error("a 32-bit object (-m32 or -mx32): compile without that option")]
    Elf32,
    /// Big-endian.
    #[error("a big-endian object: compile for x86-64")]
    BigEndian,
    /// Another architecture.
    #[error("made for {machine}: compile for x86-64")]
    Machine {
        /// Its name, or number.
        machine: String,
    },
    /// An executable, shared object or core file.
    #[error(
        "{what}, not a relocatable object: compile with `cc -c` and do not link (several objects are joined by `ld -r`)"
    )]
    NotRelocatable {
        /// Which type.
        what: &'static str,
    },
    /// Only intermediate code of a compiler.
    #[error("holds only link-time-optimization bytecode of {compiler}: compile without -flto")]
    Lto {
        /// gcc or clang.
        compiler: &'static str,
    },
    /// A kernel module.
    #[error("a kernel module: a patch for a process is compiled with <ugraft/livepatch.h>")]
    KernelModule,
    /// The ELF structure is inconsistent.
    #[error("damaged ELF file: {what} {reason}: compile it again")]
    Damaged {
        /// Which part.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// More of something than a limit allows.
    #[error("{count} {what}, a patch may have {limit}: split the patch")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: u64,
        /// How many are allowed.
        limit: u64,
    },

    // Sections.
    /// Writable and executable.
    #[error("section {section} is writable and executable: nothing in a patch may be both")]
    WritableText {
        /// Its name.
        section: String,
    },
    /// Code that would run at start-up.
    #[error(
        "section {section} holds constructors or destructors, which a patch cannot have (static C++ objects, sanitizers and profiling make them too): set up in a pre_patch callback or at first use"
    )]
    Constructors {
        /// Its name.
        section: String,
    },
    /// The patch defines thread-local variables.
    #[error(
        "`{name}` is a thread-local variable of the patch, which the threads of a running process cannot get: use the target's, or a table by thread id"
    )]
    OwnTls {
        /// The variable, or the section if it has no name.
        name: String,
    },
    /// An executable stack is needed.
    #[error(
        "needs an executable stack, as nested functions whose address is taken do: make them ordinary functions"
    )]
    ExecStack,
    /// A compressed section that is loaded.
    #[error("section {section} is loaded and compressed: compile without section compression")]
    Compressed {
        /// Its name.
        section: String,
    },
    /// Alignment beyond a page.
    #[error(
        "section {section} asks for an alignment of {align} bytes, an image can give {}: align it less",
        limits::MAX_ALIGN
    )]
    Alignment {
        /// Its name.
        section: String,
        /// In bytes.
        align: u64,
    },
    /// A kind of section that is loaded and unknown.
    #[error(
        "section {section} is loaded and of type {kind:#x}, which a patch cannot have: leave it out (objcopy -R {section})"
    )]
    SectionKind {
        /// Its name.
        section: String,
        /// `sh_type`.
        kind: u32,
    },
    /// The image would be too large.
    #[error(
        "the linked image takes {size} bytes, a patch may take {}: split the patch",
        limits::MAX_IMAGE_SIZE
    )]
    ImageTooLarge {
        /// In bytes.
        size: u64,
    },

    // Symbols.
    /// An IFUNC defined in the patch.
    #[error("`{symbol}` is an IFUNC (ifunc, target_clones): define the one implementation that is wanted")]
    IfuncDefinition {
        /// Its name.
        symbol: String,
    },
    /// A `.klp.sym.` name that does not parse.
    #[error(
        "`{symbol}` is not of the form .klp.sym.OBJECT.SYMBOL,POS ({reason}): write KLP_SYMBOL(declared, \"OBJECT\", \"SYMBOL\", POS)"
    )]
    KlpSymbol {
        /// The whole name.
        symbol: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A destructor of a static object would be registered.
    #[error(
        "registers a destructor for the end of the process (`__dso_handle`), when the patch may be gone: make the static object with new and never delete it"
    )]
    DsoHandle,

    // Relocations.
    /// A relocation type that is not supported.
    #[error("section {section}+{offset:#x}: relocation {kind} against `{symbol}` is not supported: {way}")]
    RelocationKind {
        /// Where.
        section: String,
        /// Where in it.
        offset: u64,
        /// Its name or number.
        kind: String,
        /// Against what.
        symbol: String,
        /// What to do.
        way: &'static str,
    },
    /// Dynamic TLS.
    #[error(
        "section {section}: thread-local `{symbol}` is accessed by a dynamic TLS model ({kind}): compile with -ftls-model=initial-exec"
    )]
    DynamicTls {
        /// Where.
        section: String,
        /// The variable.
        symbol: String,
        /// The relocation.
        kind: &'static str,
    },
    /// Against a section that is not in the image.
    #[error(
        "section {section}+{offset:#x} refers to {dropped}, which is not part of the image: give that section the alloc flag"
    )]
    RefersToDropped {
        /// Where.
        section: String,
        /// Where in it.
        offset: u64,
        /// To what.
        dropped: String,
    },

    // Metadata.
    /// No `KLP_PATCH`.
    #[error("marks no patch: write KLP_PATCH(patch); once, with <ugraft/livepatch.h>")]
    NoPatch,
    /// More than one `KLP_PATCH`.
    #[error("marks {count} patches: KLP_PATCH must be written once in all the objects joined")]
    SeveralPatches {
        /// How many.
        count: u64,
    },
    /// Made by a header of another version.
    #[error(
        "made with version {abi:?} of <ugraft/livepatch.h>, this ugraft knows version {known}: compile it again with this one's header"
    )]
    Abi {
        /// What the file says.
        abi: String,
        /// What we know.
        known: &'static str,
    },
    /// A string of the metadata section is wrong.
    #[error("metadata: {what} {reason}")]
    Info {
        /// Which string.
        what: String,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// A value for a parameter is wrong.
    #[error("parameter {name} {reason}")]
    Param {
        /// The parameter.
        name: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A structure is wrong.
    #[error("{path}: {reason}")]
    Structure {
        /// `objs[0].funcs[1].new_func`.
        path: String,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// The same object twice.
    #[error("{object} is listed twice: put all its functions into one klp_object")]
    DuplicateObject {
        /// Its name.
        object: String,
    },
    /// The same function twice.
    #[error("function {function} of {object} is listed twice: a patch replaces it once")]
    DuplicateFunction {
        /// Its name and position.
        function: String,
        /// Of which object.
        object: String,
    },
    /// Neither functions nor callbacks nor replace, init or exit.
    #[error(
        "the patch changes nothing: list functions in objs (a patch that only takes others off has .replace = true)"
    )]
    Empty,

    // Linking.
    /// The caller's base address cannot be.
    #[error("an image of {size} bytes cannot lie at {base}: {reason}")]
    Base {
        /// Where it was to lie.
        base: RemoteAddr,
        /// Its size.
        size: u64,
        /// Why not.
        reason: &'static str,
    },
    /// Symbols that the target does not have.
    #[error("not found in the target: {}: {way}", list(symbols))]
    Unresolved {
        /// Their names, with the reason of the one who looked, if he gave one.
        symbols: Vec<String>,
        /// What to do.
        way: &'static str,
    },
    /// A thread-local symbol where an address is wanted or the reverse.
    #[error(
        "`{symbol}` is {is} in the target, but the patch uses it as {used}: declare it as the target does"
    )]
    TlsMismatch {
        /// Its name.
        symbol: String,
        /// What it is.
        is: &'static str,
        /// How it is used.
        used: &'static str,
    },
    /// A symbol of an object that can come and go, at a place that cannot be written when it does.
    #[error(
        "section {section}+{offset:#x}: `{symbol}` can come and go, and a {kind} relocation cannot be bound anew: {way}"
    )]
    Movable {
        /// Where.
        section: String,
        /// Where in it.
        offset: u64,
        /// To what.
        symbol: String,
        /// The relocation.
        kind: &'static str,
        /// What to do.
        way: &'static str,
    },
    /// A value does not fit its place.
    #[error(
        "section {section}+{offset:#x}: `{symbol}` at {address} is out of reach of a {kind} relocation: {way}"
    )]
    OutOfReach {
        /// Where.
        section: String,
        /// Where in it.
        offset: u64,
        /// To what.
        symbol: String,
        /// Its address.
        address: RemoteAddr,
        /// The relocation.
        kind: &'static str,
        /// What to do.
        way: &'static str,
    },
    /// The linked bytes do not say what they should: a defect of the linker, found before anything was written.
    #[error(
        "the linked image failed its check at {address} ({what}): this is a defect of ugraft, please report it with the patch file"
    )]
    Check {
        /// Where.
        address: RemoteAddr,
        /// What is wrong there.
        what: String,
    },
}

impl Error {
    pub(crate) fn damaged(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Damaged { what: what.into(), reason: reason.into() }
    }
}

/// A crate-wide result.
pub type Result<T, E = Error> = core::result::Result<T, E>;

fn list(symbols: &[String]) -> String {
    symbols.join(", ")
}
