import { createHash, randomUUID } from "node:crypto";
import * as z from "zod";
import { Uuid } from "../contract/common.ts";
import { TAR_CONTENT_TYPE, UploadResponse } from "../contract/templates.ts";
import { must, mustBeAllowed } from "./access.ts";
import type { ApiDeps } from "./deps.ts";
import { ApiError, badRequest, notFound } from "./errors.ts";
import { type Route, readBody, userRoute } from "./route.ts";

interface FileRow {
  id: string;
  created_by: string;
  mime_type: string;
  data: Buffer;
}

/** Bytes as people say them: 1 MiB, 300 KiB, 17 bytes. */
export function sizeText(bytes: number): string {
  if (bytes >= 1 << 20) return `${+(bytes / (1 << 20)).toFixed(1)} MiB`;
  if (bytes >= 1 << 10) return `${+(bytes / (1 << 10)).toFixed(1)} KiB`;
  return `${bytes} bytes`;
}

export function fileRoutes({ knex, limits }: ApiDeps): Route[] {
  return [
    userRoute({
      method: "post",
      path: "/files",
      out: UploadResponse,
      status: 201,
      limit: "files",
      async handle({ ctx, user, now }) {
        mustBeAllowed(user, "create", { type: "file", ownerId: user.userId });
        const type = ctx.request.type;
        if (type !== TAR_CONTENT_TYPE)
          throw new ApiError(415, "ERR_FILE_TYPE", `Uploads of type "${type}" are not taken.`, {
            detail: `Send a tar archive as ${TAR_CONTENT_TYPE}.`,
          });
        const max = limits.templateArchiveBytes;
        const hash = createHash("sha256");
        const data = await readBody(
          ctx.req,
          max,
          () =>
            new ApiError(
              413,
              "ERR_FILE_TOO_LARGE",
              `The archive is larger than ${sizeText(max)}, the limit here.`,
              {
                detail:
                  "Take out of the template folder what Terraform doesn't need (.git, .terraform, build results, " +
                  "binaries), and let a startup script fetch large files.",
              },
            ),
          (chunk) => hash.update(chunk),
        );
        if (!looksLikeTar(data)) throw badRequest("The body is not a tar archive.");
        const digest = hash.digest("hex");
        // The same bytes from the same user are one file.
        const [created]: { id: string }[] = await knex("files")
          .insert({
            id: randomUUID(),
            hash: digest,
            created_by: user.userId,
            mime_type: TAR_CONTENT_TYPE,
            data,
            created_at: now,
          })
          .onConflict(["hash", "created_by"])
          .ignore()
          .returning("id");
        if (created) return { hash: created.id };
        ctx.status = 200;
        const known: { id: string } = await knex("files")
          .where({ hash: digest, created_by: user.userId })
          .first("id");
        return { hash: known.id };
      },
    }),
    userRoute({
      method: "get",
      path: "/files/:id",
      params: z.object({ id: Uuid }),
      out: z.instanceof(Buffer),
      limit: "files",
      async handle({ ctx, user, params }) {
        const file: FileRow | undefined = await knex("files").where({ id: params.id }).first();
        if (!file) throw notFound("File");
        must(user, "read", { type: "file", ownerId: file.created_by, id: file.id }, "File");
        ctx.type = file.mime_type;
        return file.data;
      },
    }),
  ];
}

/** POSIX (and GNU) archives say "ustar" in their first header; an empty one is only zero blocks. */
function looksLikeTar(data: Buffer): boolean {
  return (
    data.length >= 512 && data.length % 512 === 0 && data.subarray(257, 262).toString("latin1") === "ustar"
  );
}
