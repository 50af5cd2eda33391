"""Alerts by e-mail."""

from __future__ import annotations

import smtplib
import ssl
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from typing import ClassVar, Literal

from pydantic import Field

from fullft_assets.alerts.alert import Alert
from fullft_assets.alerts.registered import AlertError
from fullft_assets.alerts.secrets import SecretReference, read_secret
from fullft_assets.settings.alerts import ChannelSettings


class EmailSettings(ChannelSettings):
    """An SMTP server, and who writes to whom."""

    host: str = Field(description="Name of the SMTP server.")
    port: int = Field(default=587, ge=1, le=65_535, description="Port of the SMTP server.")
    security: Literal["starttls", "tls", "none"] = Field(
        default="starttls", description="How the connection is encrypted."
    )
    sender: str = Field(pattern=r"^[^@\s]+@[^@\s]+$", description="Address that alerts come from.")
    to: list[str] = Field(min_length=1, description="Addresses that alerts go to.")
    username: str | None = Field(default=None, description="Name to log in with. Default: no login.")
    password: SecretReference | None = Field(
        default=None, description="Where the password is: `env:NAME` or `secret:ID` (AWS Secrets Manager)."
    )


class Email:
    """Sends each alert as one plain message."""

    settings_class: ClassVar[type[ChannelSettings]] = EmailSettings

    def __init__(self, settings: EmailSettings):
        self.settings = settings

    def send(self, alert: Alert) -> None:
        """Send an alert to all addresses."""
        settings = self.settings
        message = EmailMessage()
        message["Subject"] = " ".join(alert.subject.split())
        message["From"], message["To"] = settings.sender, ", ".join(settings.to)
        message["Date"] = format_datetime(datetime.fromtimestamp(alert.at, UTC))
        message.set_content(alert.text)
        host, port = settings.host, settings.port
        # Without it smtplib takes any certificate, and whoever answers gets the password.
        trusted = ssl.create_default_context()
        try:
            with (
                smtplib.SMTP_SSL(host, port, timeout=15, context=trusted)
                if settings.security == "tls"
                else smtplib.SMTP(host, port, timeout=15)
            ) as server:
                if settings.security == "starttls":
                    server.starttls(context=trusted)
                if settings.username is not None:
                    server.login(
                        settings.username, read_secret(settings.password) if settings.password else ""
                    )
                server.send_message(message)
        except ssl.SSLCertVerificationError as error:
            raise AlertError(
                f"{host}:{port} has a certificate that is not trusted ({error.verify_message}); "
                "if its authority is your own, name the file with it in $SSL_CERT_FILE"
            ) from error
        except (OSError, smtplib.SMTPException) as error:
            raise AlertError(f"{host}:{port} did not take the message ({type(error).__name__})") from error
