//! The processes of this machine, as `/proc` lists them, and which of them descend from another one.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
};

/// A process of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) parent: i32,
    pub(super) group: i32,
    /// Whether it can still do something. One that has ended and was not waited for can not.
    pub(super) lives: bool,
    /// Whether a signal has stopped it, as Ctrl-Z does.
    pub(super) is_stopped: bool,
    /// Whether it waits without heeding signals: for a disk, or for a child of `vfork` to start its program.
    waits: bool,
    /// The moment at which it began, by the clock of the system.
    began: u64,
}

/// A process for ever: its id may be given to another one when it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    pub(super) pid: i32,
    began: u64,
}

impl Process {
    pub(super) fn identity(&self) -> Identity {
        Identity { pid: self.pid, began: self.began }
    }

    /// Reads `/proc/PID/stat`: the second field is a name that may have spaces and brackets.
    fn parse(stat: &str) -> Option<Self> {
        let (pid, _) = stat.split_once(' ')?;
        let (_, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<i32>().ok();
        let state = *fields.first()?;
        let ended = matches!(state, "Z" | "X" | "x");
        Some(Self {
            pid: pid.parse().ok()?,
            parent: number(4)?,
            group: number(5)?,
            // The first thread of a process may end before others, which work on.
            lives: !ended || number(20)? > 1,
            is_stopped: matches!(state, "T" | "t"),
            waits: state == "D",
            began: fields.get(22 - 3)?.parse().ok()?,
        })
    }
}

/// Tells whether any of some processes works on though all were told to stop. A process does not that waits for a child which was
/// stopped while it was being started: no signal reaches either before they are continued.
pub(super) fn any_works(processes: &[Process]) -> bool {
    let stopped: HashSet<i32> =
        processes.iter().filter(|process| process.is_stopped).map(|process| process.parent).collect();
    processes.iter().any(|process| !(process.is_stopped || process.waits && stopped.contains(&process.pid)))
}

/// The processes of one look.
#[derive(Debug, Default)]
pub(super) struct Table(Vec<Process>);

impl Table {
    /// Looks at all processes; an error where there is no `/proc`.
    ///
    /// A process whose parent ends meanwhile is seen below a parent that is not: then it looks again.
    pub(super) fn read() -> io::Result<Self> {
        const LOOKS: usize = 5;
        // A `/proc` of another namespace has other numbers.
        let own = fs::read_link("/proc/self")?;
        if own.to_str() != Some(&std::process::id().to_string()) {
            return Err(io::Error::new(io::ErrorKind::NotFound, "/proc is of another namespace"));
        }
        let mut table = Self::read_once()?;
        for _ in 1..LOOKS {
            if table.is_whole() {
                break;
            }
            table = Self::read_once()?;
        }
        Ok(table)
    }

    fn read_once() -> io::Result<Self> {
        let mut processes = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(name) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
            else {
                continue;
            };
            // A process that has ended since it was listed is not there.
            let Ok(stat) = fs::read(format!("/proc/{name}/stat")) else { continue };
            processes.extend(Process::parse(&String::from_utf8_lossy(&stat)));
        }
        if processes.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no process is listed in /proc"));
        }
        Ok(Self(processes))
    }

    fn is_whole(&self) -> bool {
        let known: HashSet<i32> = self.0.iter().map(|process| process.pid).collect();
        self.0.iter().all(|process| process.parent == 0 || known.contains(&process.parent))
    }

    /// Tells whether one of these processes is a child of another one, also if it has ended.
    pub(super) fn is_child(&self, of: i32, any: &HashSet<Identity>) -> bool {
        self.0.iter().any(|process| process.parent == of && any.contains(&process.identity()))
    }

    /// Returns the living descendants of a process, but for `strangers` and their descendants.
    pub(super) fn descendants(&self, of: i32, strangers: &HashSet<Identity>) -> Vec<Process> {
        let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
        for process in &self.0 {
            children.entry(process.parent).or_default().push(*process);
        }
        let (mut found, mut parents) = (Vec::new(), vec![of]);
        while let Some(parent) = parents.pop() {
            for child in children.remove(&parent).unwrap_or_default() {
                if !strangers.contains(&child.identity()) {
                    parents.push(child.pid);
                    found.push(child);
                }
            }
        }
        found.retain(|process| process.lives);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(pid: i32, name: &str, state: &str, parent: i32, threads: i32) -> Process {
        let rest = "0 -1 4194304 1 0 0 0 0 0 0 0 20 0";
        let line = format!("{pid} ({name}) {state} {parent} {pid} 9 {rest} {threads} 0 77 8 9");
        Process::parse(&line).expect("is a line of /proc")
    }

    #[test]
    fn process_that_waits_for_a_stopped_child_does_not_work() {
        let [waits, stopped, sleeps] = [("D", 3), ("T", 7), ("S", 3)].map(|(state, parent)| {
            let pid = if state == "D" { 7 } else { 8 };
            stat(pid, "a", state, parent, 1)
        });
        assert!(!any_works(&[waits, stopped]));
        assert!(any_works(&[waits]), "it waits for a disk");
        assert!(any_works(&[sleeps, stopped]));
        assert!(!any_works(&[]));
    }

    #[test]
    fn names_with_brackets_and_spaces_are_read_over() {
        let process = stat(7, "a) Z 1 (b", "S", 3, 1);
        let expected =
            Process { pid: 7, parent: 3, group: 7, lives: true, is_stopped: false, waits: false, began: 77 };
        assert_eq!(process, expected);
        assert!(stat(7, "a", "T", 3, 1).is_stopped);
        assert_eq!(Process::parse("7 (a"), None);
    }

    #[test]
    fn zombie_has_ended_unless_another_of_its_threads_works() {
        assert!(!stat(7, "a", "Z", 3, 1).lives);
        assert!(stat(7, "a", "Z", 3, 2).lives);
    }

    #[test]
    fn descendants_leave_strangers_and_zombies_out() {
        let table = Table(vec![
            stat(1, "init", "S", 0, 1),
            stat(10, "coord", "S", 1, 2),
            stat(11, "sh", "Z", 10, 1),
            stat(12, "worker", "S", 11, 1),
            stat(13, "logger", "S", 10, 1),
            stat(14, "of logger", "S", 13, 1),
            stat(15, "other", "S", 1, 1),
        ]);
        let logger = HashSet::from([Identity { pid: 13, began: 77 }]);
        let found = table.descendants(10, &logger);
        assert_eq!(found.iter().map(|process| process.pid).collect::<Vec<_>>(), [12]);
        assert!(table.is_child(10, &logger) && !table.is_child(1, &logger));
        let earlier = HashSet::from([Identity { pid: 13, began: 76 }]);
        assert_eq!(table.descendants(10, &earlier).len(), 3, "its id was given to another one");
    }

    #[test]
    fn look_between_two_parents_is_not_whole() {
        assert!(Table(vec![stat(1, "init", "S", 0, 1), stat(2, "a", "S", 1, 1)]).is_whole());
        assert!(!Table(vec![stat(1, "init", "S", 0, 1), stat(3, "a", "S", 2, 1)]).is_whole());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_listed() {
        let own = i32::try_from(std::process::id()).expect("fits");
        let table = Table::read().expect("/proc is there");
        assert!(table.0.iter().any(|process| process.pid == own && process.lives));
    }
}
