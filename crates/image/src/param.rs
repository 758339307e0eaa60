//! Parameters of patches: their types, and values as texts and as bytes.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The longest value of a string.
pub const MAX_STRING: usize = 1024;

/// The type of a parameter, as `module_param` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ParamKind {
    /// y, n, 1, 0, on, off.
    Bool,
    /// The opposite of what is said.
    InvBool,
    /// `unsigned char`
    Byte,
    /// `short`
    Short,
    /// `unsigned short`
    UShort,
    /// `int`
    Int,
    /// `unsigned int`
    UInt,
    /// `long`
    Long,
    /// `unsigned long`
    ULong,
    /// `char *`
    CharP,
}

/// A value of a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParamValue {
    /// What the variable holds.
    Bytes(Vec<u8>),
    /// What the variable points to, without the zero at its end.
    Text(String),
}

impl ParamKind {
    /// By the name that `module_param` has for it.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "bool" | "_Bool" => Self::Bool,
            "invbool" => Self::InvBool,
            "byte" => Self::Byte,
            "short" => Self::Short,
            "ushort" => Self::UShort,
            "int" => Self::Int,
            "uint" | "hexint" => Self::UInt,
            "long" => Self::Long,
            "ulong" | "ullong" => Self::ULong,
            "charp" => Self::CharP,
            _ => return None,
        })
    }

    /// The name that `module_param` has for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::InvBool => "invbool",
            Self::Byte => "byte",
            Self::Short => "short",
            Self::UShort => "ushort",
            Self::Int => "int",
            Self::UInt => "uint",
            Self::Long => "long",
            Self::ULong => "ulong",
            Self::CharP => "charp",
        }
    }

    /// Bytes of its variable.
    #[must_use]
    pub fn size(self) -> u64 {
        match self {
            Self::Bool | Self::InvBool | Self::Byte => 1,
            Self::Short | Self::UShort => 2,
            Self::Int | Self::UInt => 4,
            Self::Long | Self::ULong | Self::CharP => 8,
        }
    }

    /// What is a value of it, in words.
    fn wants(self) -> String {
        match self {
            Self::Bool | Self::InvBool => "y, n, 1, 0, on or off".to_owned(),
            Self::CharP => format!("a text of at most {MAX_STRING} bytes"),
            Self::Byte | Self::UShort | Self::UInt | Self::ULong => {
                format!("a whole number of {} bits without a sign", self.size() * 8)
            }
            Self::Short | Self::Int | Self::Long => format!("a whole number of {} bits", self.size() * 8),
        }
    }

    /// The value that `text` means for the parameter `name`.
    ///
    /// # Errors
    /// [`Error::Param`] where it is none of this type.
    pub fn parse(self, name: &str, text: &str) -> Result<ParamValue> {
        let wrong = || Error::Param {
            name: name.to_owned(),
            reason: format!("cannot be {text:?}: give it {}", self.wants()),
        };
        let bytes = match self {
            Self::CharP if text.len() <= MAX_STRING && !text.contains('\0') => {
                return Ok(ParamValue::Text(text.to_owned()));
            }
            Self::CharP => return Err(wrong()),
            Self::Bool | Self::InvBool => {
                let value = match text.to_ascii_lowercase().as_str() {
                    "y" | "yes" | "1" | "on" | "true" | "" => true,
                    "n" | "no" | "0" | "off" | "false" => false,
                    _ => return Err(wrong()),
                };
                vec![u8::from(value != (self == Self::InvBool))]
            }
            _ => {
                let number = number(text).ok_or_else(wrong)?;
                let bits = self.size() * 8;
                let signed = matches!(self, Self::Short | Self::Int | Self::Long);
                let (least, most) = if signed {
                    (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
                } else {
                    (0, (1i128 << bits) - 1)
                };
                if !(least..=most).contains(&number) {
                    return Err(wrong());
                }
                number.to_le_bytes()[..self.size() as usize].to_vec()
            }
        };
        Ok(ParamValue::Bytes(bytes))
    }

    /// What the variable's bytes mean. Of a `char *` the bytes are the text's.
    #[must_use]
    pub fn show(self, bytes: &[u8]) -> String {
        let mut padded = [0u8; 8];
        let len = bytes.len().min(8);
        padded[..len].copy_from_slice(&bytes[..len]);
        let word = u64::from_le_bytes(padded);
        let shift = 64 - 8 * self.size();
        match self {
            Self::Bool => if word != 0 { "Y" } else { "N" }.to_owned(),
            Self::InvBool => if word == 0 { "Y" } else { "N" }.to_owned(),
            Self::Byte | Self::UShort | Self::UInt | Self::ULong => (word << shift >> shift).to_string(),
            Self::Short | Self::Int | Self::Long => ((word << shift).cast_signed() >> shift).to_string(),
            Self::CharP => String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control()).collect(),
        }
    }
}

/// A number in C's spellings.
fn number(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let value = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) if hex.starts_with(|c: char| c.is_ascii_hexdigit()) => u64::from_str_radix(hex, 16),
        Some(_) => return None,
        None if digits.len() > 1 && digits.starts_with('0') => u64::from_str_radix(&digits[1..], 8),
        None => digits.parse::<u64>(),
    };
    let value = i128::from(value.ok()?);
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_bytes_and_texts_again() {
        let both = |kind: ParamKind, text: &str| match kind.parse("x", text).unwrap() {
            ParamValue::Bytes(bytes) => kind.show(&bytes),
            ParamValue::Text(text) => text,
        };
        assert_eq!(both(ParamKind::Int, "-19"), "-19");
        assert_eq!(both(ParamKind::Int, "0x10"), "16");
        assert_eq!(both(ParamKind::UShort, "0777"), "511");
        assert_eq!(both(ParamKind::ULong, "18446744073709551615"), "18446744073709551615");
        assert_eq!(both(ParamKind::Bool, "on"), "Y");
        assert_eq!(both(ParamKind::InvBool, "on"), "Y");
        assert_eq!(both(ParamKind::CharP, "a b"), "a b");
        for (kind, text) in [
            (ParamKind::Int, "2147483648"),
            (ParamKind::Int, ""),
            (ParamKind::Int, "1x"),
            (ParamKind::Int, "0x"),
            (ParamKind::Int, "0x+1"),
            (ParamKind::Byte, "-1"),
            (ParamKind::Bool, "perhaps"),
        ] {
            assert!(matches!(kind.parse("x", text), Err(Error::Param { .. })), "{kind:?} {text}");
        }
    }
}
