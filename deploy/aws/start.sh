#!/bin/sh
# Start Dagster's services on a machine of platform.yaml with the present password of the database:
#   sh start.sh IMAGE@sha256:... SECRET_ARN /etc/fullft.env
# Nothing is done where they run with this image, these variables and this password. So cron may run it each hour: when the password was
# rotated, the services are made anew (Docker reads variables when it makes a container, not when it restarts one). A training stops with
# a checkpoint, and the next run goes on from it.
set -eu
image=$1 secret=$2 variables=$3
umask 077
folder=${FULLFT_RUN:-/run/fullft}
mkdir -p "$folder"

password=$(aws secretsmanager get-secret-value --secret-id "$secret" --query SecretString --output text |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["password"])')
{
  echo "# $image"
  cat "$variables"
  printf 'DAGSTER_POSTGRES_PASSWORD=%s\n' "$password"
} > "$folder/next.env"
if cmp -s "$folder/next.env" "$folder/services.env" && [ "$(docker ps --quiet --filter name='^fullft-' | wc -l)" -eq 3 ]; then
  exit 0
fi

case $image in
  *.dkr.ecr.*) aws ecr get-login-password | docker login --username AWS --password-stdin "${image%%/*}" ;;
esac
docker pull --quiet "$image"
docker run --rm --env-file "$folder/next.env" "$image" dagster instance migrate
for name in webserver daemon; do
  docker rm --force "fullft-$name" > /dev/null 2>&1 || true
done
# What a training has to write its checkpoint.
docker stop --time 120 fullft-code > /dev/null 2>&1 || true
docker rm --force fullft-code > /dev/null 2>&1 || true

start() {
  name=$1
  shift
  docker run --detach --name "fullft-$name" --restart unless-stopped --env-file "$folder/next.env" "$@"
}
start code --hostname code --gpus all --shm-size 2g --publish 127.0.0.1:3000:3000 \
  --volume fullft-cache:/var/lib/fullft/cache --volume fullft-models:/var/lib/fullft/models --env HF_HOME=/var/lib/fullft/models "$image"
beside="--network container:fullft-code --pid container:fullft-code"
# shellcheck disable=SC2086
start daemon $beside "$image" dagster-daemon run --workspace deploy/docker/workspace.yaml
# shellcheck disable=SC2086
start webserver $beside "$image" python -m fullft_assets.cli.webserver --host 0.0.0.0 --port 3000 \
  --workspace deploy/docker/workspace.yaml
# Last: where a step above failed, the next call does all of it again.
mv "$folder/next.env" "$folder/services.env"
