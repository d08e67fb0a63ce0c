//! One operation of a benchmark, once, for a tool that counts instructions: `codec-… --count "event_seal 30"`. What the
//! counts are, and which are too many, is in `.ci/counts`.

use std::hint::black_box;

/// An operation with what it needs, made ready.
pub(crate) type Operation = Box<dyn FnMut()>;

/// What the tool goes by: instructions in here are counted, and no others.
#[inline(never)]
fn only_this_is_counted(operation: &mut Operation) {
    operation();
}

/// An operation that drops what it makes, as those who use it do.
pub(crate) fn boxed<T>(mut operation: impl FnMut() -> T + 'static) -> Operation {
    Box::new(move || drop(black_box(operation())))
}

/// Does what `--count NAME` or `--count-list` say; false if neither is there, and the benchmarks are to be measured.
pub(crate) fn answer(operations: &[(&str, &dyn Fn() -> Operation)]) -> bool {
    let mut arguments = std::env::args().skip_while(|argument| !argument.starts_with("--count"));
    match arguments.next().as_deref() {
        Some("--count-list") => {
            for (name, _) in operations {
                println!("{name}");
            }
        }
        Some("--count") => {
            let wanted = arguments.next().expect("--count NAME");
            let make = operations.iter().find(|(name, _)| *name == wanted).expect("a name of --count-list").1;
            let mut operation = make();
            // What is made once in a process is not counted: tables, buffers that stay.
            operation();
            only_this_is_counted(&mut operation);
        }
        _ => return false,
    }
    true
}
