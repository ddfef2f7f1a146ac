//! Local replies: failure → status, body, response flag, details. The only such table.

use std::fmt;

/// Envoy's response flags, in the order they were set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    set: [Option<Flag>; 4],
}

/// One response flag; the names are Envoy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "reference/telemetry-and-operations.md §4.6 has the table")]
pub enum Flag {
    UH,
    UT,
    UR,
    UF,
    UC,
    UO,
    NR,
    DI,
    FI,
    DC,
    URX,
    SI,
    DPE,
    UPE,
    NC,
    DR,
}

impl Flags {
    /// Sets `flag` after those that are set already.
    pub fn set(&mut self, flag: Flag) {
        for place in &mut self.set {
            match place {
                Some(present) if *present == flag => return,
                Some(_) => {}
                None => {
                    *place = Some(flag);
                    return;
                }
            }
        }
    }

    /// Whether no flag is set.
    pub fn is_empty(&self) -> bool {
        self.set[0].is_none()
    }

    /// Whether `flag` is set.
    pub fn contains(&self, flag: Flag) -> bool {
        self.set.contains(&Some(flag))
    }

    /// The flags in order.
    pub fn iter(&self) -> impl Iterator<Item = Flag> {
        self.set.iter().copied().flatten()
    }
}

impl fmt::Display for Flags {
    /// `URX,UF`, or `-` if there is none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        for (index, flag) in self.iter().enumerate() {
            write!(f, "{}{flag:?}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}
