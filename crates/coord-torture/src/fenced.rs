//! Registers outside the store, which believe nobody but the largest token.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};

use crate::history::{Access, History, Name, What};

/// The fenced registers of a run. Each refuses a token smaller than the largest that it has seen, on reads as well as
/// on writes: if reads were let through, a holder that has lost its lock could write between the read of the next
/// holder and its first write.
#[derive(Debug, Default)]
pub(crate) struct Registers {
    registers: Mutex<BTreeMap<Name, Register>>,
    fence: Fence,
}

/// What a register checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fence {
    #[default]
    ReadsAndWrites,
    /// What is not enough; to show that the checkers see it.
    #[cfg(test)]
    WritesOnly,
}

#[derive(Debug, Default)]
struct Register {
    value: u64,
    seen: u64,
}

impl Registers {
    #[cfg(test)]
    pub(crate) fn fenced_by(fence: Fence) -> Self {
        Self { fence, ..Self::default() }
    }

    fn registers(&self) -> MutexGuard<'_, BTreeMap<Name, Register>> {
        self.registers.lock().expect("nothing panics while this is locked")
    }

    /// Reads a register; `None` if it refuses the token.
    pub(crate) fn read(&self, history: &History, process: usize, name: &Name, token: u64) -> Option<u64> {
        let mut registers = self.registers();
        let register = registers.entry(name.clone()).or_default();
        let accepted = match self.fence {
            Fence::ReadsAndWrites => register.admits(token),
            #[cfg(test)]
            Fence::WritesOnly => true,
        };
        let access = Access::Read(register.value);
        history.add(process, What::Fenced { register: name.clone(), token, access, accepted });
        accepted.then_some(register.value)
    }

    /// Writes a register; `false` if it refuses the token.
    pub(crate) fn write(
        &self,
        history: &History,
        process: usize,
        name: &Name,
        token: u64,
        value: u64,
    ) -> bool {
        let mut registers = self.registers();
        let register = registers.entry(name.clone()).or_default();
        let accepted = register.admits(token);
        if accepted {
            register.value = value;
        }
        let access = Access::Write(value);
        history.add(process, What::Fenced { register: name.clone(), token, access, accepted });
        accepted
    }
}

impl Register {
    fn admits(&mut self, token: u64) -> bool {
        let admits = token >= self.seen;
        self.seen = self.seen.max(token);
        admits
    }
}
