//! `parallax`: what can be done with a saved report.

use std::{io, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
use parallax_loadgen::{cli, render, report::Report};

/// Load reports of axum services, seen from both sides.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a saved report; exits as the run that wrote it did
    ///
    /// Examples:
    ///   parallax render target/parallax/report.json
    ///   parallax render report.json --format html > report.html
    #[command(verbatim_doc_comment)]
    Render {
        /// A report.json
        report: PathBuf,
        /// What to make of it
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
        /// No colours, on a terminal either
        #[arg(long)]
        no_color: bool,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Text,
    Json,
    Html,
}

fn main() -> ExitCode {
    let Command::Render { report, format, no_color } = Cli::parse().command;
    let report = match Report::read(&report) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let text = match format {
        Format::Text => {
            let color = !no_color && cli::color_on(&io::stdout());
            render::text(&report, render::Style { color })
        }
        Format::Json => render::json(&report),
        Format::Html => render::html(&report),
    };
    match cli::print_whole(&text) {
        Ok(()) => cli::exit_code(&report),
        Err(error) => {
            eprintln!("error: cannot print the report: {error}");
            ExitCode::from(1)
        }
    }
}
