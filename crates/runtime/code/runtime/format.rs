//! printf's formats as the kernel has them: integers, characters, strings, pointers; no floating point.

/// `va_list` of the System V ABI for x86-64 (3.5.7).
#[repr(C)]
#[derive(Debug)]
pub struct VaList {
    gp_offset: u32,
    fp_offset: u32,
    overflow: *const u8,
    saved: *const u8,
}

/// Bytes of the six integer registers in the register save area.
const INTEGERS: u32 = 48;
/// Stands for the name of who writes (`KBUILD_MODNAME` of the headers).
const NAME: u8 = 2;
/// The longest string that is read.
const STRING_MAX: usize = 4096;
/// Digits of a number in base 8.
const DIGITS: usize = 22;

/// A text of limited length: what does not fit is left out.
#[derive(Debug)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    /// An empty text.
    pub const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    /// Its bytes, as far as they fit.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }

    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }

    fn fill(&mut self, byte: u8, count: usize) {
        for _ in 0..count.min(N) {
            self.push(byte);
        }
    }

    /// Appends bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.push(*byte);
        }
    }

    /// Appends a number.
    pub fn add_number(&mut self, value: u64, base: u64) {
        integer(self, &Spec::default(), value, base, false, false, false);
    }

    /// Removes the line end at the end.
    pub fn trim_line_end(&mut self) {
        if self.as_bytes().last() == Some(&b'\n') {
            self.len = self.len.wrapping_sub(1);
        }
    }
}

impl VaList {
    /// A list whose arguments are all on the stack.
    #[cfg(test)]
    pub fn of_stack(words: &[u64]) -> Self {
        Self { gp_offset: INTEGERS, fp_offset: 0, overflow: words.as_ptr().cast(), saved: core::ptr::null() }
    }

    /// The next integer or pointer.
    ///
    /// # Safety
    /// There must be one.
    unsafe fn word(&mut self) -> u64 {
        // SAFETY: as the ABI lays it out, and the caller's promise.
        unsafe {
            if self.gp_offset < INTEGERS {
                let at = self.saved.add(self.gp_offset as usize);
                self.gp_offset = self.gp_offset.wrapping_add(8);
                at.cast::<u64>().read_unaligned()
            } else {
                let at = self.overflow;
                self.overflow = at.add(8);
                at.cast::<u64>().read_unaligned()
            }
        }
    }
}

/// What stands between `%` and the letter.
#[derive(Clone, Copy, Default)]
struct Spec {
    left: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
    /// 8, 16, 32 or 64.
    bits: u32,
}

/// Formats `format` with `args` into `text`; the byte 2 stands for `name`.
///
/// # Safety
/// `format` must be a string that ends with a zero, and `args` hold what it asks for.
pub unsafe fn format<const N: usize>(text: &mut Text<N>, format: *const u8, args: &mut VaList, name: &[u8]) {
    let mut at = format;
    // SAFETY: within the string, as its end stops it; the arguments are the caller's promise.
    unsafe {
        while *at != 0 {
            if *at != b'%' {
                match *at {
                    NAME => text.add(name),
                    byte => text.push(byte),
                }
                at = at.add(1);
                continue;
            }
            at = at.add(1);
            let mut spec = Spec { bits: 32, ..Spec::default() };
            loop {
                match *at {
                    b'-' => spec.left = true,
                    b'+' => spec.plus = true,
                    b' ' => spec.space = true,
                    b'#' => spec.alternate = true,
                    b'0' => spec.zero = true,
                    _ => break,
                }
                at = at.add(1);
            }
            if *at == b'*' {
                at = at.add(1);
                let width = (args.word() as u32).cast_signed();
                spec.left |= width < 0;
                spec.width = width.unsigned_abs() as usize;
            } else {
                (spec.width, at) = number(at);
            }
            if *at == b'.' {
                at = at.add(1);
                if *at == b'*' {
                    at = at.add(1);
                    let precision = (args.word() as u32).cast_signed();
                    spec.precision = usize::try_from(precision).ok();
                } else {
                    let (precision, rest) = number(at);
                    spec.precision = Some(precision);
                    at = rest;
                }
            }
            loop {
                match *at {
                    b'h' => spec.bits = if spec.bits == 16 { 8 } else { 16 },
                    b'l' | b'z' | b'j' | b't' | b'q' | b'L' => spec.bits = 64,
                    _ => break,
                }
                at = at.add(1);
            }
            let letter = *at;
            if letter == 0 {
                return;
            }
            at = at.add(1);
            match letter {
                b'%' => text.push(b'%'),
                b'c' => {
                    let byte = args.word() as u8;
                    padded(text, &spec, &[byte]);
                }
                b's' => {
                    let string = args.word() as *const u8;
                    string_of(text, &spec, string);
                }
                b'd' | b'i' => {
                    let value = signed(args.word(), spec.bits);
                    integer(text, &spec, value.unsigned_abs(), 10, false, value < 0, true);
                }
                b'u' => integer(text, &spec, unsigned(args.word(), spec.bits), 10, false, false, false),
                b'x' | b'X' => {
                    let value = unsigned(args.word(), spec.bits);
                    integer(text, &spec, value, 16, letter == b'X', false, false);
                }
                b'o' => integer(text, &spec, unsigned(args.word(), spec.bits), 8, false, false, false),
                b'p' => {
                    // What the kernel says of a pointer by further letters is its own affair.
                    while (*at).is_ascii_alphanumeric() {
                        at = at.add(1);
                    }
                    let whole = Spec { alternate: true, precision: Some(1), ..spec };
                    integer(text, &whole, args.word(), 16, false, false, false);
                }
                other => {
                    text.push(b'%');
                    text.push(other);
                }
            }
        }
    }
}

/// Reads digits.
///
/// # Safety
/// `at` must point into a string that ends with a zero.
unsafe fn number(mut at: *const u8) -> (usize, *const u8) {
    let mut value = 0usize;
    // SAFETY: the string's end is no digit.
    unsafe {
        while (*at).is_ascii_digit() {
            value = value.saturating_mul(10).saturating_add((*at - b'0') as usize);
            at = at.add(1);
        }
    }
    (value, at)
}

fn signed(word: u64, bits: u32) -> i64 {
    let shift = 64 - bits;
    (word << shift).cast_signed() >> shift
}

fn unsigned(word: u64, bits: u32) -> u64 {
    let shift = 64 - bits;
    (word << shift) >> shift
}

/// # Safety
/// `string` must be null or end with a zero, or have as many bytes as the precision says.
unsafe fn string_of<const N: usize>(text: &mut Text<N>, spec: &Spec, string: *const u8) {
    if string.is_null() {
        padded(text, spec, b"(null)");
        return;
    }
    let limit = spec.precision.unwrap_or(STRING_MAX).min(STRING_MAX);
    let mut len = 0;
    // SAFETY: the caller's promise.
    let bytes = unsafe {
        while len < limit && *string.add(len) != 0 {
            len += 1;
        }
        core::slice::from_raw_parts(string, len)
    };
    padded(text, spec, bytes);
}

fn padded<const N: usize>(text: &mut Text<N>, spec: &Spec, bytes: &[u8]) {
    let pad = spec.width.saturating_sub(bytes.len());
    if !spec.left {
        text.fill(b' ', pad);
    }
    for byte in bytes {
        text.push(*byte);
    }
    if spec.left {
        text.fill(b' ', pad);
    }
}

fn integer<const N: usize>(
    text: &mut Text<N>,
    spec: &Spec,
    value: u64,
    base: u64,
    upper: bool,
    negative: bool,
    signs: bool,
) {
    // Last digit first.
    let mut digits = [0u8; DIGITS];
    let mut len = 0;
    let mut rest = value;
    for place in &mut digits {
        if rest == 0 {
            break;
        }
        let digit = (rest % base) as u8;
        *place = match digit {
            0..=9 => b'0' + digit,
            _ if upper => b'A' + (digit - 10),
            _ => b'a' + (digit - 10),
        };
        rest /= base;
        len += 1;
    }
    let sign = match (negative, signs && spec.plus, signs && spec.space) {
        (true, ..) => Some(b'-'),
        (_, true, _) => Some(b'+'),
        (_, _, true) => Some(b' '),
        _ => None,
    };
    let prefix: &[u8] = match base {
        16 if spec.alternate && (value != 0 || spec.precision == Some(1)) => {
            if upper {
                b"0X"
            } else {
                b"0x"
            }
        }
        8 if spec.alternate => b"0",
        _ => b"",
    };
    let least = spec.precision.unwrap_or(1);
    let mut zeros = least.saturating_sub(len);
    let taken = len + zeros + prefix.len() + usize::from(sign.is_some());
    let mut pad = spec.width.saturating_sub(taken);
    if spec.zero && !spec.left && spec.precision.is_none() {
        zeros += pad;
        pad = 0;
    }
    if !spec.left {
        text.fill(b' ', pad);
    }
    if let Some(sign) = sign {
        text.push(sign);
    }
    for byte in prefix {
        text.push(*byte);
    }
    text.fill(b'0', zeros);
    for digit in digits.iter().take(len).rev() {
        text.push(*digit);
    }
    if spec.left {
        text.fill(b' ', pad);
    }
}
