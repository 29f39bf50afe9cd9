//! The page: what is shown of what was seen, and what keys do. No I/O.

use std::{collections::BTreeMap, time::Instant};

use coord_api::{Candidate, Holder, ServiceInfo};
use ratatui::{
    Frame,
    crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::Line,
    widgets::{Block, Paragraph, Row, Table, TableState},
};

use crate::{
    elect::{self, value},
    lock::who,
    out::shown,
    service::metadata,
};

/// What there is in the store.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) locks: BTreeMap<String, Vec<Holder>>,
    pub(super) elections: BTreeMap<String, Vec<Candidate>>,
    pub(super) services: BTreeMap<String, Vec<ServiceInfo>>,
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    GoOn,
    LookNow,
    Quit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Locks,
    Elections,
    Services,
}

/// The page and where one is in it.
#[derive(Debug)]
pub(super) struct Page {
    place: String,
    seen: Option<(Instant, Seen)>,
    /// Why the last look failed; what was seen before stays.
    error: Option<String>,
    part: Part,
    locks: TableState,
    elections: TableState,
    services: TableState,
}

impl Page {
    pub(super) fn new(place: &str) -> Self {
        Self {
            place: place.to_owned(),
            seen: None,
            error: None,
            part: Part::Locks,
            locks: TableState::new(),
            elections: TableState::new(),
            services: TableState::new(),
        }
    }

    /// Takes in what was seen, or why nothing was.
    pub(super) fn update(&mut self, seen: Result<Seen, String>) {
        match seen {
            Ok(seen) => (self.seen, self.error) = (Some((Instant::now(), seen)), None),
            Err(error) => self.error = Some(error),
        }
    }

    /// What a key does.
    pub(super) fn react(&mut self, event: &Event) -> Next {
        let Event::Key(key) = event else { return Next::GoOn };
        if key.kind == KeyEventKind::Release {
            return Next::GoOn;
        }
        let state = match self.part {
            Part::Locks => &mut self.locks,
            Part::Elections => &mut self.elections,
            Part::Services => &mut self.services,
        };
        match key.code {
            // In this mode the terminal sends no signal for it.
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Next::Quit,
            KeyCode::Char('q') | KeyCode::Esc => return Next::Quit,
            KeyCode::Char('r') => return Next::LookNow,
            KeyCode::Tab => {
                self.part = match self.part {
                    Part::Locks => Part::Elections,
                    Part::Elections => Part::Services,
                    Part::Services => Part::Locks,
                };
            }
            KeyCode::Up => state.select_previous(),
            KeyCode::Down => state.select_next(),
            KeyCode::PageUp => state.scroll_up_by(10),
            KeyCode::PageDown => state.scroll_down_by(10),
            KeyCode::Home => state.select_first(),
            KeyCode::End => state.select_last(),
            _ => {}
        }
        Next::GoOn
    }

    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let [head, locks, elections, services, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Fill(1),
            Constraint::Fill(1),
            Constraint::Fill(1),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(Line::styled(self.head(), Modifier::BOLD), head);
        self.draw_locks(frame, locks);
        self.draw_elections(frame, elections);
        self.draw_services(frame, services);
        let keys = " q quit   r look now   Tab other table   Up Down scroll";
        frame.render_widget(Line::styled(keys, Modifier::DIM), foot);
        if let Some(error) = &self.error {
            let since = self
                .seen
                .as_ref()
                .map_or_else(String::new, |(at, _)| format!(" (shown: {} s ago)", at.elapsed().as_secs()));
            let text = format!(" {}{since}", shown(error));
            frame.render_widget(Paragraph::new(text).style(Style::new().fg(Color::Red)), foot);
        }
    }

    fn head(&self) -> String {
        let counts = match &self.seen {
            None => "looking".to_owned(),
            Some((_, Seen { locks, elections, services })) => format!(
                "{}, {} waiting   {}   {}, {}",
                count(locks.len(), "lock"),
                locks.values().map(|queue| queue.len().saturating_sub(1)).sum::<usize>(),
                count(elections.len(), "election"),
                count(services.len(), "service"),
                count(services.values().map(Vec::len).sum(), "instance"),
            ),
        };
        format!(" coord top   {}   {counts}", shown(&self.place))
    }

    fn draw_locks(&mut self, frame: &mut Frame<'_>, area: Rect) {
        let seen = self.seen.iter().flat_map(|(_, seen)| &seen.locks);
        let rows: Vec<Row<'_>> = seen
            .map(|(name, queue)| {
                let waiting = match queue.get(1) {
                    None => String::new(),
                    Some(next) => format!("{}: {}", queue.len() - 1, who(Some(next))),
                };
                let token = queue.first().map(|holder| holder.token.to_string()).unwrap_or_default();
                Row::new([shown(name), who(queue.first()), token, waiting])
            })
            .collect();
        let widths = [Constraint::Fill(2), Constraint::Fill(3), Constraint::Length(12), Constraint::Fill(3)];
        let table = Table::new(rows, widths).header(header(["LOCK", "HELD BY", "TOKEN", "WAITING, NEXT"]));
        let table = table.block(block(" Locks ", self.part == Part::Locks)).row_highlight_style(REVERSED);
        frame.render_stateful_widget(table, area, &mut self.locks);
    }

    fn draw_elections(&mut self, frame: &mut Frame<'_>, area: Rect) {
        let seen = self.seen.iter().flat_map(|(_, seen)| &seen.elections);
        let rows: Vec<Row<'_>> = seen
            .map(|(name, candidates)| {
                let leader = candidates.first();
                let token = leader.map(|leader| leader.token.to_string()).unwrap_or_default();
                let waiting = candidates.len().saturating_sub(1).to_string();
                Row::new([
                    shown(name),
                    elect::who(leader),
                    token,
                    leader.map(value).unwrap_or_default(),
                    waiting,
                ])
            })
            .collect();
        let widths = [
            Constraint::Fill(2),
            Constraint::Fill(3),
            Constraint::Length(12),
            Constraint::Fill(2),
            Constraint::Length(7),
        ];
        let table =
            Table::new(rows, widths).header(header(["ELECTION", "LED BY", "TOKEN", "VALUE", "WAITING"]));
        let table =
            table.block(block(" Elections ", self.part == Part::Elections)).row_highlight_style(REVERSED);
        frame.render_stateful_widget(table, area, &mut self.elections);
    }

    fn draw_services(&mut self, frame: &mut Frame<'_>, area: Rect) {
        let seen = self.seen.iter().flat_map(|(_, seen)| &seen.services);
        let rows: Vec<Row<'_>> = seen
            .flat_map(|(name, instances)| {
                instances.iter().map(|info| {
                    Row::new([shown(name), shown(&info.id), shown(&info.authority()), metadata(info)])
                })
            })
            .collect();
        let widths = [Constraint::Fill(2), Constraint::Fill(2), Constraint::Fill(2), Constraint::Fill(3)];
        let table = Table::new(rows, widths).header(header(["SERVICE", "ID", "ADDRESS", "METADATA"]));
        let table =
            table.block(block(" Services ", self.part == Part::Services)).row_highlight_style(REVERSED);
        frame.render_stateful_widget(table, area, &mut self.services);
    }
}

const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);

fn header<const N: usize>(names: [&'static str; N]) -> Row<'static> {
    Row::new(names).style(Modifier::BOLD)
}

fn block(title: &'static str, focused: bool) -> Block<'static> {
    let style = if focused { Style::new().fg(Color::Cyan) } else { Style::new().add_modifier(Modifier::DIM) };
    Block::bordered().title(title).border_style(style)
}

fn count(number: usize, word: &str) -> String {
    format!("{number} {word}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use coord_api::{FencingToken, Owner};
    use ratatui::{Terminal, backend::TestBackend, crossterm::event::KeyEvent};

    use super::*;

    fn seen() -> Seen {
        let holder = |pid, label: &str, token| {
            let owner = Owner::new("web-1", pid, Some(label.into()), format!("client-{pid}"));
            Holder::new(Some(owner), format!("/shop/locks/job/{pid}"), FencingToken::new(token))
        };
        let queue = vec![holder(41, "report.sh", 7), holder(42, "report.sh", 9)];
        let foreign = vec![Holder::new(None, "/shop/locks/go/1f", FencingToken::new(3))];
        let candidate = |pid: u32, value: &'static str| {
            let owner = Owner::new("web-2", pid, None, format!("client-{pid}"));
            let token = FencingToken::new(pid.into());
            Candidate::new(Some(owner), format!("/shop/elections/boss/{pid}"), token, value.into())
        };
        let candidates = vec![candidate(51, "10.0.0.5:80"), candidate(52, "10.0.0.6:80")];
        let web = vec![
            ServiceInfo::new("web", "1", "10.0.0.1", 80).with_zone("eu"),
            ServiceInfo::new("web", "2", "::1", 80),
        ];
        Seen {
            locks: BTreeMap::from([("job".into(), queue), ("go".into(), foreign)]),
            elections: BTreeMap::from([("boss".into(), candidates)]),
            services: BTreeMap::from([("web".into(), web)]),
        }
    }

    fn drawn(page: &mut Page) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(100, 21)).unwrap();
        terminal.draw(|frame| page.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        buffer
            .content()
            .chunks(100)
            .map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect())
            .collect()
    }

    fn press(page: &mut Page, code: KeyCode) -> Next {
        page.react(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)))
    }

    #[test]
    fn what_was_seen_is_on_the_page() {
        let mut page = Page::new("etcd://h:2379/shop");
        assert!(drawn(&mut page)[0].contains("looking"));
        page.update(Ok(seen()));
        let rows = drawn(&mut page);
        let text = rows.join("\n");
        assert!(
            rows[0].contains("etcd://h:2379/shop   2 locks, 1 waiting   1 election   1 service, 2 instances"),
            "{text}"
        );
        let has = |words: &[&str]| rows.iter().any(|row| words.iter().all(|word| row.contains(word)));
        assert!(has(&["job", "report.sh web-1 pid 41", "7", "1: report.sh web-1 pid 42"]), "{text}");
        assert!(has(&["go", "another program", "3"]), "{text}");
        assert!(has(&["boss", "web-2 pid 51", "51", "10.0.0.5:80", "1"]), "{text}");
        assert!(has(&["web", "10.0.0.1:80", "zone=eu"]) && has(&["web", "[::1]:80"]), "{text}");
    }

    #[test]
    fn what_was_seen_stays_when_a_look_fails() {
        let mut page = Page::new("etcd://h:2379/shop");
        page.update(Ok(seen()));
        page.update(Err("etcd is unavailable".into()));
        let rows = drawn(&mut page);
        assert!(rows[20].contains("etcd is unavailable (shown: 0 s ago)"), "{}", rows[20]);
        assert!(rows.iter().any(|row| row.contains("report.sh web-1 pid 41")));
        page.update(Ok(Seen::default()));
        assert!(drawn(&mut page)[20].contains("q quit"));
    }

    #[test]
    fn keys_quit_look_and_scroll() {
        let mut page = Page::new("");
        page.update(Ok(seen()));
        assert_eq!(press(&mut page, KeyCode::Char('q')), Next::Quit);
        assert_eq!(press(&mut page, KeyCode::Char('r')), Next::LookNow);
        let ctrl_c = Event::Key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert_eq!(page.react(&ctrl_c), Next::Quit);
        press(&mut page, KeyCode::End);
        drawn(&mut page);
        assert_eq!((page.locks.selected(), page.services.selected()), (Some(1), None));
        press(&mut page, KeyCode::Tab);
        press(&mut page, KeyCode::Tab);
        press(&mut page, KeyCode::Down);
        assert_eq!(press(&mut page, KeyCode::Char('x')), Next::GoOn);
        drawn(&mut page);
        assert_eq!((page.locks.selected(), page.services.selected()), (Some(1), Some(0)));
    }
}
