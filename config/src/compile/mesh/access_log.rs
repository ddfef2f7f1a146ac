//! MeshConfig's access log.
//!
//! Source: `reference/telemetry-and-operations.md` §4.1-4.3.

use std::sync::Arc;

use serde_json::Value;

use super::super::options::{AccessLogChoice, Options};
use super::super::report::{Field, Report};
use crate::diagnostic::Code;
use crate::resource::mesh_config::AccessLogEncoding;
use crate::snapshot::format::Format;
use crate::snapshot::telemetry::AccessLog;

/// The fields of MeshConfig.
pub(super) struct Settings<'a> {
    pub(super) file: &'a str,
    pub(super) format: &'a str,
    pub(super) encoding: AccessLogEncoding,
}

/// The access log; `field` is where MeshConfig stands, if there is one.
pub(super) fn compile(
    settings: &Settings<'_>,
    options: &Options,
    field: Option<&Field<'_>>,
    report: &mut Report,
) -> Option<AccessLog> {
    let encoding = match options.access_log {
        Some(AccessLogChoice::Off) => return None,
        Some(AccessLogChoice::Text) => AccessLogEncoding::Text,
        Some(AccessLogChoice::Json) => AccessLogEncoding::Json,
        None if settings.file.is_empty() => return None,
        None => settings.encoding,
    };
    if let Some(field) = field
        && !matches!(settings.file, "" | "/dev/stdout")
    {
        report.unsupported(field.name("accessLogFile"), "not supported yet: the access log goes to standard output");
    }
    // A format belongs to the encoding it was written for.
    let format = if encoding == settings.encoding { settings.format } else { "" };
    let default = || match encoding {
        AccessLogEncoding::Text => AccessLog::Text(Arc::new(Format::default_access_log())),
        AccessLogEncoding::Json => AccessLog::Json(Arc::new(Format::default_json_access_log())),
    };
    let Some(field) = field.filter(|_| !format.is_empty()) else { return Some(default()) };
    let field = field.name("accessLogFormat");
    let log = match encoding {
        AccessLogEncoding::Text => text(format, field, report).map(|format| AccessLog::Text(Arc::new(format))),
        AccessLogEncoding::Json => json(format, field, report).map(|formats| AccessLog::Json(Arc::new(formats))),
    };
    Some(log.unwrap_or_else(default))
}

fn text(text: &str, field: Field<'_>, report: &mut Report) -> Option<Format> {
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    parse(&format!("{text}{newline}"), field, report)
}

/// Keys in byte order, as Envoy prints them.
fn json(text: &str, field: Field<'_>, report: &mut Report) -> Option<Vec<(String, Format)>> {
    let object = match serde_json::from_str(text) {
        Ok(Value::Object(object)) => object,
        Ok(_) => {
            report.error(Code::BadValue, field, "a JSON access log format is a JSON object");
            return None;
        }
        Err(error) => {
            report.error(Code::BadValue, field, format!("not JSON: {error}"));
            return None;
        }
    };
    let mut formats = Vec::new();
    for (key, value) in object {
        match value {
            Value::String(text) => formats.push((key, parse(&text, field, report)?)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {
                report.unsupported(field, format!("`{key}`: not supported yet: printed as text"));
                formats.push((key, Format::literal(&value.to_string())));
            }
            Value::Array(_) | Value::Object(_) => {
                report.unsupported(field, format!("`{key}`: nested values are not supported yet: left out"));
            }
        }
    }
    formats.sort_by(|(a, _), (b, _)| a.cmp(b));
    Some(formats)
}

fn parse(text: &str, field: Field<'_>, report: &mut Report) -> Option<Format> {
    match Format::parse(text) {
        Ok(format) => {
            for command in format.unsupported() {
                report.unsupported(field, format!("`{command}` is not supported yet: it prints nothing"));
            }
            Some(format)
        }
        Err(error) => {
            report.error(Code::BadValue, field, format!("{error}; the default format is used"));
            None
        }
    }
}
