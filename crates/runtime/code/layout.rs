//! What the tool and the code in the target both know: the log's and the table of patches' layout.

/// Says that what lies here is a log of this layout.
pub const LOG_MAGIC: u64 = 0x3130_676f_6c67_7275;
/// Messages that are kept; older ones give way.
pub const LOG_SLOTS: usize = 128;
/// Bytes of one text; what is longer is cut.
pub const TEXT_MAX: usize = 480;
/// Patches that states are looked for in.
pub const PATCHES_MAX: usize = 64;

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

const _: () = assert!(size_of::<LogHead>() == 32);
const _: () = assert!(size_of::<LogSlot>() == 24 + TEXT_MAX);
const _: () = assert!(size_of::<Patches>() == 8 + 8 * PATCHES_MAX);
