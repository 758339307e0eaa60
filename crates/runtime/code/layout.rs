//! What the tool and the code in the target both know: the log's and the table of patches' layout.

/// Says that what lies here is a log of this layout.
pub const LOG_MAGIC: u64 = 0x3130_676f_6c67_7275;
/// Messages that are kept; older ones give way.
pub const LOG_SLOTS: usize = 128;
/// Bytes of one text; what is longer is cut.
pub const TEXT_MAX: usize = 480;
/// Patches that states are looked for in.
pub const PATCHES_MAX: usize = 64;

/// Bytes for shadow variables that come with the runtime, before it maps any.
pub const FIRST_CHUNK: usize = 256 << 10;

/// The log's head, in front of its slots.
#[repr(C)]
#[derive(Debug)]
pub struct LogHead {
    /// [`LOG_MAGIC`]
    pub magic: u64,
    /// `int clock_gettime(clockid_t, struct timespec *)`, or 0: set by the tool.
    pub clock: u64,
    /// The number of the next message.
    pub next: u64,
    /// Messages that were lost because their slot was being written.
    pub lost: u64,
}

/// One message.
#[repr(C)]
#[derive(Debug)]
pub struct LogSlot {
    /// 0: none; 2n + 1: message n is being written; 2n + 2: message n.
    pub state: u64,
    /// Nanoseconds since 1970-01-01 UTC, or 0.
    pub time: u64,
    /// Bytes of the text.
    pub len: u32,
    /// The kernel's level, 0 to 7.
    pub level: u32,
    /// The text, without a line end.
    pub text: [u8; TEXT_MAX],
}

/// The patches whose states count, set by the tool before each callback.
#[repr(C)]
#[derive(Debug)]
pub struct Patches {
    /// How many there are.
    pub count: u64,
    /// Addresses of their `struct klp_patch`, the oldest first.
    pub patches: [u64; PATCHES_MAX],
}

/// How the redirect of a function lies, as the runtime has found it: what the tool knows as an entry. All zero where there is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// The function's first byte.
    pub start: u64,
    /// Its length in bytes.
    pub size: u64,
    /// Where the redirect lies: the start, or behind the `endbr64` there.
    pub place: u64,
    /// Where the `jmp rel32` lies: the place, or padding nearby to which a `jmp rel8` at the place leads (a springboard).
    pub jump: u64,
    /// The original bytes from the place on: those that are overwritten (5, or 2 with a springboard), and the rest of the last
    /// instruction.
    pub original: [u8; ORIGINAL_MAX],
    /// How many they are.
    pub original_len: u8,
    /// How many of them are instructions that a thunk takes over.
    pub displaced: u8,
    /// With a springboard the original five bytes at `jump`, else zero.
    pub padding: [u8; 5],
    /// Zero.
    pub reserved: u8,
}

/// Bytes that a redirect of five displaces at most: all but one of them, and an instruction of fifteen.
pub const ORIGINAL_MAX: usize = 24;

/// Says that what lies here is memory of the runtime's near a library.
pub const NEAR_MAGIC: u64 = 0x7261_656e_6c67_7275;

/// What memory near a library begins with; its cells follow.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct NearHead {
    /// [`NEAR_MAGIC`]
    pub magic: u64,
    /// Its own address.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Zero.
    pub reserved: u64,
}

/// Bytes of a function's cell: its stub, its thunk, a far jump.
pub const CELL_LEN: usize = 352;
/// Where in a cell the thunk lies, behind the stub.
pub const CELL_THUNK: usize = 256;
/// No thunk is longer.
pub const THUNK_MAX: usize = 80;
/// Where in a cell the far jump lies.
pub const CELL_JUMP: usize = 336;

/// A stub without its sides, that works wherever it lies: the tool makes it for a transition, the runtime fills it in for a
/// function of a library that comes meanwhile.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StubTemplate {
    /// Bytes that count; 0 where no transition runs.
    pub len: u32,
    /// Where in them the address of the gate's count lies, 8 bytes.
    pub gate_at: u16,
    /// Where the address of the source lies, 8 bytes.
    pub source_at: u16,
    /// Where the address of the goal lies, 8 bytes.
    pub goal_at: u16,
    /// Zero.
    pub reserved: [u16; 3],
    /// The code.
    pub code: [u8; CELL_THUNK],
}

const _: () = assert!(size_of::<StubTemplate>() == 16 + CELL_THUNK);
const _: () = assert!(size_of::<Site>() == 64 && size_of::<NearHead>() == 32);
const _: () = assert!(CELL_THUNK + THUNK_MAX == CELL_JUMP && CELL_JUMP + 16 == CELL_LEN);
const _: () = assert!(size_of::<LogHead>() == 32);
const _: () = assert!(size_of::<LogSlot>() == 24 + TEXT_MAX);
const _: () = assert!(size_of::<Patches>() == 8 + 8 * PATCHES_MAX);
