//! The fields of spans as JSON objects, for the library's JSON messages. Every call has a span and hardly any has a message:
//! the library collects the fields as values in a sorted map and then prints that, which costs more than the span.

use std::fmt::{self, Debug, Write};

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::span::Record;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormattedFields;
use tracing_subscriber::fmt::format::{FormatFields, Writer};

/// Prints them as they come.
pub struct SpanFields;

impl<'writer> FormatFields<'writer> for SpanFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        writer.write_char('{')?;
        print(&mut writer, true, |object| fields.record(object))?;
        writer.write_char('}')
    }

    /// A field that is recorded twice is there twice; whoever reads the object takes the last one.
    fn add_fields(
        &self,
        current: &'writer mut FormattedFields<SpanFields>,
        fields: &Record<'_>,
    ) -> fmt::Result {
        let text = &mut current.fields;
        if text.pop() != Some('}') {
            text.push('{');
        }
        let first = text.ends_with('{');
        print(text, first, |object| fields.record(object))?;
        text.write_char('}')
    }
}

fn print(out: &mut dyn Write, first: bool, record: impl FnOnce(&mut Object<'_>)) -> fmt::Result {
    let mut object = Object { out, first, printed: Ok(()), text: String::new() };
    record(&mut object);
    object.printed
}

/// An object of which the next field is printed.
struct Object<'a> {
    out: &'a mut dyn Write,
    first: bool,
    printed: fmt::Result,
    /// What a value prints, before its quotes and escapes.
    text: String,
}

impl Object<'_> {
    fn field(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let comma = if std::mem::take(&mut self.first) { "" } else { "," };
        // Names are identifiers, with points between them.
        let printed = write!(self.out, "{comma}\"{}\":{value}", field.name());
        self.printed = self.printed.and(printed);
    }

    fn text(&mut self, field: &Field, text: &str) {
        // What stands for itself in a JSON string (RFC 8259 section 7).
        let plain = |byte: &u8| *byte >= b' ' && !matches!(byte, b'"' | b'\\');
        if text.as_bytes().iter().all(plain) {
            self.field(field, format_args!("\"{text}\""));
        } else {
            self.field(field, format_args!("{}", Value::from(text)));
        }
    }
}

impl Visit for Object<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // Not every number is one in JSON.
        self.field(field, format_args!("{}", Value::from(value)));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field, format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.field(field, format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field, format_args!("{value}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        self.printed = self.printed.and(write!(text, "{value:?}"));
        self.text(field, &text);
        self.text = text;
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing::field::Empty;
    use tracing::subscriber::with_default;
    use tracing_subscriber::fmt::Subscriber;

    use super::*;

    #[derive(Clone, Default)]
    struct Messages(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Messages {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn say() {
        let outer = tracing::info_span!(
            "outer",
            text = "plain",
            shown = %"a \"quoted\" \\ text\n\u{1}",
            debugged = ?Some("é"),
            number = u64::MAX,
            negative = i64::MIN,
            yes = true,
            half = 0.5,
            none = f64::NAN,
            later = Empty,
            dotted.name = 1,
        );
        outer.record("later", "now");
        let _outer = outer.enter();
        let bare = tracing::info_span!("bare", later = Empty).entered();
        tracing::info!("first");
        bare.record("later", 7);
        tracing::warn!(field = 1, "second");
    }

    /// The oracle is the library's own formatter. Broken to see it fail: no comma, no escapes, `later` left out.
    #[test]
    fn messages_say_the_same_as_with_the_library_s_own_fields() {
        let (ours, theirs) = (Messages::default(), Messages::default());
        let to = |messages: &Messages| {
            let messages = messages.clone();
            Subscriber::builder().with_writer(move || messages.clone()).without_time().json()
        };
        with_default(to(&ours).fmt_fields(SpanFields).finish(), say);
        with_default(to(&theirs).finish(), say);
        let read = |messages: Messages| -> Vec<Value> {
            let text = String::from_utf8(messages.0.lock().unwrap().clone()).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        let ours = read(ours);
        assert_eq!(ours.len(), 2);
        assert_eq!(ours, read(theirs));
    }
}
