//! Diagnostics for people: Istio's header line, the source as rustc shows it, and what to do.

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::{Diagnostic, Place, Severity};

/// Lines of source shown before the one in question.
const CONTEXT_LINES: usize = 1;
/// A longer line is no help, and may be a certificate or a whole JSON file.
const MAX_LINE: usize = 400;

/// How to draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// No escape sequences.
    Plain,
    /// ANSI colours.
    Coloured,
}

/// Draws one diagnostic, several lines with a final newline.
///
/// ```text
/// Error [GW0005] (VirtualService shop/web routes/web.yaml:9) spec.http[0].timeout:
///   `soon` is not a duration: a number is missing
///   --> routes/web.yaml:9:14
///    |
///  8 |   - name: first
///  9 |     timeout: soon
///    |              ^^^^
///   help: write it like `1s`, `250ms` or `1h30m`
/// ```
pub fn render(diagnostic: &Diagnostic, style: Style) -> String {
    let Diagnostic { severity, code, place, resource, path, message, help } = diagnostic;
    let paint = Paint(style);
    let colour = match severity {
        Severity::Error => "1;31",
        Severity::Warning => "1;33",
        Severity::Note => "1;32",
    };
    let mut text = paint.colour(colour, &format!("{severity} [{}]", code.id()));
    text.push_str(" (");
    if let Some(resource) = resource {
        text.push_str(&format!("{resource} "));
    }
    text.push_str(&format!("{})", place.location()));
    if !path.is_empty() {
        text.push(' ');
        text.push_str(&paint.colour("1", path));
    }
    text.push_str(":\n");
    for line in message.lines() {
        text.push_str(&format!("  {line}\n"));
    }
    if let Some(excerpt) = excerpt(place, *severity, style) {
        text.push_str(&excerpt);
        text.push('\n');
    }
    if let Some(help) = help {
        text.push_str(&format!("  {} {help}\n", paint.colour("1;36", "help:")));
    }
    text
}

struct Paint(Style);

impl Paint {
    fn colour(&self, colour: &str, text: &str) -> String {
        match self.0 {
            Style::Plain => text.to_owned(),
            Style::Coloured => format!("\u{1b}[{colour}m{text}\u{1b}[0m"),
        }
    }
}

/// The lines around the place, or `None` for whole files, secrets and lines that are too long.
fn excerpt(place: &Place, severity: Severity, style: Style) -> Option<String> {
    let Place::Span { document, line, range, .. } = place else { return None };
    if document.is_secret() {
        return None;
    }
    let text = document.text();
    let line = *line as usize;
    let first = line.saturating_sub(CONTEXT_LINES);
    let start = line_start(text, first);
    let here = line_start(text, line);
    let end = text[here..].find('\n').map_or(text.len(), |length| here + length);
    let window = text.get(start..end)?;
    if window.lines().any(|line| line.len() > MAX_LINE) {
        return None;
    }
    // What goes beyond the line is not underlined.
    let from = floor(text, range.start.clamp(here, end)) - start;
    let to = floor(text, range.end.clamp(here, end)) - start;
    let level = match severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
        Severity::Note => Level::NOTE,
    };
    let location = place.location();
    let path = location.file.to_string_lossy();
    let snippet = Snippet::source(window)
        .line_start(document.first_line() as usize + first)
        .path(path.as_ref())
        .fold(false)
        .annotation(AnnotationKind::Primary.span(from..to.max(from)));
    let renderer = match style {
        Style::Plain => Renderer::plain(),
        Style::Coloured => Renderer::styled(),
    };
    Some(renderer.render(&[Group::with_level(level).element(snippet)]))
}

fn line_start(text: &str, line: usize) -> usize {
    if line == 0 {
        return 0;
    }
    text.match_indices('\n').nth(line - 1).map_or(text.len(), |(offset, _)| offset + 1)
}

fn floor(text: &str, offset: usize) -> usize {
    (0..=offset.min(text.len())).rev().find(|offset| text.is_char_boundary(*offset)).unwrap_or(0)
}
